"""Base against edited: intervals, paired statistics, gates."""
