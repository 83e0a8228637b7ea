"""The host's own processor as the judge of xuni's instructions: cases, the oracle that runs them, their generator."""
