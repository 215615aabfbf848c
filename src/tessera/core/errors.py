"""The two errors a user can meet. Everything else is our own mistake and keeps its traceback."""


class InputError(ValueError):
    """Bad input: params, files, images. The message gives name, rule, value and remedy, and is shown without traceback."""


class NonFiniteError(FloatingPointError):
    """A loss, latent or gradient is NaN or infinite; raised before anything is updated with it, naming the term."""
