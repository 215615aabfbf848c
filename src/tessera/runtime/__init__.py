"""Everything that must not change results, and is therefore no DVC dependency: devices and ranks, progress bars, scratch
checkpoints, and the entry point of stages with its guard of inputs."""
