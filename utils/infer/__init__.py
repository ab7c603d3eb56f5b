"""One picture in, a verdict out."""
