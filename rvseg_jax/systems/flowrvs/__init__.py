"""FlowRVS: flow matching from video latent to mask latent."""
