"""One file per metric: each declares a `Metric`, which `petransfer.recipe.metrics.METRICS` finds."""
