"""k-means, k-center coresets, facility location and nearest neighbours over vectors of an `embed` step."""

__version__ = "0.1.0"
