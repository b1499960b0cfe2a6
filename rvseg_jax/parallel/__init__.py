"""Device meshes, sharding rules and multi-process set-up."""
