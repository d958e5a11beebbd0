"""The labeling service: human demonstrations, rankings and comparisons."""
