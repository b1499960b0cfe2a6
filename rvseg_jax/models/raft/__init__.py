"""RAFT: optical flow by recurrent updates on all-pairs correlations (Teed and Deng 2020)."""
