"""The watching side: what is scraped, shipped, alerted on and exported."""
