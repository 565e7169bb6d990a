"""What the light stand-in has of Triton: the helper in C that is compiled before the first kernel."""
