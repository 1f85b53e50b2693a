"""Let onnxruntime-genai run onnxq's native kernels: the library beside the model, and its name in genai_config.json."""

import json
import shutil
from pathlib import Path

from onnxq.errors import ModelError, UsageError
from onnxq.model.replacing import output_errors, replacing
from onnxq.runtime.native import native_library

_CONFIG = "genai_config.json"


def register_in_folder(folder: str | Path) -> Path:
    """Prepare a folder of onnxruntime-genai whose model onnxq quantized; a second call changes nothing.

    onnxruntime-genai loads only libraries that lie in the folder itself, so the library is copied there. Without it
    the model runs too, by the functions that it carries.

    Args:
        folder: with genai_config.json, model and tokenizer, as the builder of onnxruntime-genai writes it.

    Returns:
        The copied library.

    Raises:
        ModelError: the folder has no genai_config.json, or it cannot be read.
        UsageError: the native library is not built.
        OutputError: the folder cannot be written.
    """
    folder, library = Path(folder), native_library()
    if library.problem:
        raise UsageError(library.problem)
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
        options = config["model"]["decoder"].setdefault("session_options", {})
    except FileNotFoundError:
        raise ModelError(f"'{folder}' has no {_CONFIG}: it is no folder of onnxruntime-genai") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"'{path}' cannot be read: {error}") from error
    copied = folder / library.path.name
    options["custom_ops_library"] = copied.name
    with output_errors(f"cannot write in '{folder}'"):
        shutil.copyfile(library.path, copied)
        with replacing(path) as partial:
            partial.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    return copied
