"""How well queries find their identity: ranks, metrics, intervals and re-ranking."""
