"""Results in the formats of E2B: charts and pictures."""
