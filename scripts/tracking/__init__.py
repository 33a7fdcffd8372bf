"""Followers of a run's history: each tells the rows of metrics.jsonl to one tracker (`--track`, `shoal track`,
`shoal.track`)."""
