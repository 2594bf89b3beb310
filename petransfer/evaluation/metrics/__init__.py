"""One file per metric. Each file declares a `Metric`."""
