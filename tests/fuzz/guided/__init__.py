"""`python -m tests.fuzz.guided`: bytes that reach code which none before has reached, by atheris and its libFuzzer."""
