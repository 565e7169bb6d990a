"""ai-server: the door in front of vLLM."""
