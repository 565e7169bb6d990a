"""The monitoring server: what is scraped, shipped, alerted on and exported."""
