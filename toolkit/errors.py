"""One family of errors, each with one sentence as its text.

Every error that a user can cause is a ``ToolkitError``; scripts print it as one line and exit
with status 2, the service answers with a problem document.

    ToolkitError
     |- SettingsError       a flag, a variable or an argument is wrong
     |- DataError           a data set cannot be used
     |- TrainingError       a training failed: the loss became infinite, say
     |- ImageError          one image cannot be used
     |   |- UndecodableImage    it is broken, or no image
     |   |- UnsupportedImage    its format is not on the list
     |   |   '- DecoderMissing      it needs a package that is not installed
     |   '- ImageTooLarge       its bytes or pixels exceed the limit
     |- TrackingError       MLflow cannot be reached or refuses
     |- BundleError         a model bundle is missing, altered or inconsistent
     |- RegistryError       a model, version or stage does not exist or cannot move
     |   |- NotRegistered       there is nothing to load (yet)
     |   '- PromotionRefused    it is worse than the version in Production, or that is unknown
     '- PredictionStoreError the store of predictions cannot be used
         '- UnknownPrediction   no prediction has that id
"""

import difflib
from collections.abc import Iterable


class ToolkitError(Exception):
    """Base of all errors that a user can cause; ``str(error)`` is one sentence."""


class SettingsError(ToolkitError):
    """A flag, an environment variable or an argument is wrong."""


class DataError(ToolkitError):
    """A data set cannot be used."""


class TrainingError(ToolkitError):
    """A training failed in a way that other settings would mend."""


class ImageError(ToolkitError):
    """One image cannot be used."""


class UndecodableImage(ImageError):
    """The image is broken, or the bytes are no image at all."""


class UnsupportedImage(ImageError):
    """The image is in a format outside the allowed list."""


class DecoderMissing(UnsupportedImage):
    """The image can only be read with a package that is not installed."""


class ImageTooLarge(ImageError):
    """The image has more bytes or pixels than the limit."""


class TrackingError(ToolkitError):
    """MLflow cannot be reached, or refuses a request."""


class BundleError(ToolkitError):
    """A model bundle is missing, altered or inconsistent."""


class RegistryError(ToolkitError):
    """A model, version or stage does not exist, or cannot be moved as asked."""


class NotRegistered(RegistryError):
    """There is no registered version to load; that may change without a restart."""


class PromotionRefused(RegistryError):
    """A version may not go into Production: it is worse than the one there, or that cannot be known."""


class PredictionStoreError(ToolkitError):
    """The store of predictions cannot be opened, read or written."""


class UnknownPrediction(PredictionStoreError):
    """No prediction has the given id."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type's name when it has none.

    >>> first_line(ValueError("no such table\\n(Background on this error ...)"))
    'no such table'
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def suggest(names: Iterable[object], wanted: object = "") -> str:
    """List the existing names, the nearest to ``wanted`` first, for the end of a message.

    >>> suggest(["resnet18", "simple_cnn"], "simple_cmm")
    'simple_cnn, resnet18'
    >>> suggest([])
    'none'
    """
    texts = [str(name) for name in names]
    near = difflib.get_close_matches(str(wanted), texts, n=len(texts) or 1, cutoff=0.6)
    ordered = near + [text for text in texts if text not in near]
    shown = ordered[:10] + ([f"and {len(ordered) - 10} more"] if len(ordered) > 10 else [])
    return ", ".join(shown) or "none"
