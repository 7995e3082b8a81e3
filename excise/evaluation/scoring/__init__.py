"""From answers to verdicts, and from verdicts to metrics."""
