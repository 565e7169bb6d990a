package main

// The library that this release opens: without a major up to 3.x, with it from 4.0.0.
const (
	libraryMajor   = "3"
	libraryName    = "libdcgm.so"
	libraryMissing = "the engine's library cannot be opened"
)
