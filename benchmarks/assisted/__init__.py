"""What the benchmarks of model-assisted sampling share."""
