"""Benchmarks: side-by-side runs against peers; each cell resumes from its committed JSON."""
