"""What transformers has to say is for its programmers: on a command line, only errors are shown."""


def quiet_transformers() -> None:
    """Turn its warnings off, for commands that load parts with it."""
    import transformers

    transformers.logging.set_verbosity_error()
