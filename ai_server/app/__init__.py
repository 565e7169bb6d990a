"""ai-server: the API gateway in front of vLLM."""
