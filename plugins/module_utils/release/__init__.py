"""Services as releases: write, start, prove, roll back; units, probes and the checklist."""
