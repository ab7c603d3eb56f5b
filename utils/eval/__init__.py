"""Figures for a checkpoint on a data set."""
