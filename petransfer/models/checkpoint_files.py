"""Find the files of a checkpoint and its tokenizer, and report errors about these files in one line."""

from __future__ import annotations

import contextlib
import errno
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from petransfer.data.hub_network import use_cache_if_unreachable
from petransfer.errors import UserError, reason_of, shortened
from petransfer.models.added_tokens import add_tokens
from petransfer.models.hub_cache import VOCABULARIES, has_one_of, incomplete_copy, missing_file
from petransfer.models.languages import with_languages
from petransfer.models.registry import NANO, checkpoint_spec, embedded_folder, is_embedded
from petransfer.models.support import separate_vocabularies
from petransfer.recipe.run_spec import CheckpointSpec

# The exceptions that transformers raises for wrong values in a checkpoint's files.
_WRONG_FILE_ERRORS = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError, AssertionError,
    StrictDataclassError,
)  # fmt: skip
# The tokenizer files that contain text, not binary data.
_TOKENIZER_TEXT_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "vocab.json",
    "chat_template.jinja",
)  # fmt: skip
# Attention functions that every machine has. None: transformers chooses one.
_ATTENTION = (None, "eager", "sdpa")


def location(checkpoint: CheckpointSpec) -> str:
    """Return the folder or hub id that transformers loads a checkpoint from."""
    if is_embedded(checkpoint.name):
        return str(embedded_folder(checkpoint.name))
    return checkpoint.source or checkpoint.name


def revision(checkpoint: CheckpointSpec) -> str | None:
    """Return the revision of a checkpoint on the hub. None for a checkpoint that is not on the hub."""
    return None if checkpoint.source or is_embedded(checkpoint.name) else checkpoint.weights


def hub_commit(checkpoint: CheckpointSpec) -> str | None:
    """Return the current commit of a checkpoint's revision. None for a checkpoint that is not on the hub."""
    hub_revision = revision(checkpoint)
    return (
        extract_commit_hash(cached_file(checkpoint.name, CONFIG_NAME, revision=hub_revision), None)
        if hub_revision
        else None
    )


def read_configuration(checkpoint: CheckpointSpec) -> Any:
    """Return a checkpoint's configuration, read from its config.json.

    Raises:
        UserError: config.json has a wrong value, is not JSON, or needs code that comes with the checkpoint.
        OSError: There is no config.json, or the hub cannot be reached.
    """
    place, hub_revision = location(checkpoint), revision(checkpoint)
    try:
        config = AutoConfig.from_pretrained(place, revision=hub_revision, trust_remote_code=False)
    except Exception as error:  # each architecture reads its values with its own code, which can raise any error
        if not _has_configuration(place, hub_revision):
            raise
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{place} is a model with code of its own (auto_map in config.json), which petransfer does not run; "
                "use a checkpoint of an architecture that transformers has"
            ) from error
        raise wrong_configuration(place, error) from error
    use_default_outputs(config)
    return config


def use_default_outputs(config: Any) -> None:
    """Reset the fields of a configuration that change a model's outputs or its way of computing to their defaults.

    A config.json has other values if its author saved the settings of another program. A model that returns tuples
    cannot generate. A model that returns attention weights cannot be saved with the default attention function. The
    attention function can need a package or a GPU, and gradient checkpointing is chosen for each training.
    """
    for part in _parts(config):
        if part._attn_implementation not in _ATTENTION:
            part._attn_implementation_internal = None
        if getattr(part, "gradient_checkpointing", False):
            part.gradient_checkpointing = False
        part.return_dict = True
        if getattr(part, "output_attentions", False):
            part.output_attentions = False
        part.output_hidden_states = False
        if not hasattr(type(part), "sliding_window") and getattr(part, "sliding_window", None):
            part.sliding_window = None  # the model has no window, but transformers would truncate its cache


def runs_differently(config: Any) -> bool:
    """Return whether a configuration chooses an attention function, or turns gradient checkpointing on."""
    return any(
        part._attn_implementation not in _ATTENTION or getattr(part, "gradient_checkpointing", False)
        for part in _parts(config)
    )


def _parts(config: Any) -> list[Any]:
    """Return a configuration and the configurations in it."""
    inner = [getattr(config, name, None) for name in type(config).sub_configs]
    return [config, *(one for one in inner if one is not None)]


def wrong_configuration(place: str, error: Exception) -> UserError:
    """Return the error for a config.json that transformers cannot read, or from which it cannot build the model."""
    if isinstance(error, ImportError):
        return _missing_package(place, error)
    return UserError(
        f"config.json of {place} is wrong ({_reason_in_configuration(error)}); correct it, or get the checkpoint again"
    )


def _missing_package(place: str, error: ImportError) -> UserError:
    return UserError(f"{place} needs a package that is not installed: {shortened(reason_of(error), 200)}")


def _has_configuration(place: str, hub_revision: str | None) -> bool:
    if Path(place).is_dir():
        return Path(place, str(CONFIG_NAME)).is_file()
    found: object = try_to_load_from_cache(place, CONFIG_NAME, revision=hub_revision)
    return isinstance(found, str)


def _reason_in_configuration(error: Exception) -> str:
    """Return why a config.json is wrong, without transformers' advice."""
    reason = reason_of(error)
    if "does not recognize this architecture" in reason:
        return f"transformers {transformers.__version__} does not know its model_type"
    if "Should have a `model_type` key" in reason:
        return "it has no model_type"
    if "is not a valid JSON file" in reason:
        return "it is not JSON"
    return shortened(f"{type(error).__name__}: {reason}" if isinstance(error, KeyError) else reason, 200)


def load_tokenizer(checkpoint: CheckpointSpec) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer, with tokens for the characters in `checkpoint.added_tokens`.

    Raises:
        UserError: The tokenizer is missing or damaged, or needs a package that is not installed.
    """
    place, hub_revision = _tokenizer_location(checkpoint)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place, revision=hub_revision, trust_remote_code=False
        )
    except ImportError as error:
        raise _missing_package(f"the tokenizer of {place}", error) from error
    except OSError:
        raise
    except Exception as error:  # the tokenizers library raises Exception itself for a damaged file
        if not has_one_of(place, hub_revision, VOCABULARIES):
            raise _no_tokenizer(place, hub_revision) from error
        raise _damaged_tokenizer(place, hub_revision, error) from error
    if getattr(tokenizer, "separate_vocabs", False):
        raise separate_vocabularies(place)
    own = type(tokenizer).vocab_files_names.values()
    if own and not has_one_of(place, hub_revision, (*own, *VOCABULARIES)):
        raise _no_tokenizer(place, hub_revision)  # transformers has made an empty one
    add_tokens(tokenizer, checkpoint.added_tokens)
    name = place
    if place == str(NANO / "tokenizer"):  # messages name the shipped checkpoint, not a folder of the package
        name = tokenizer.name_or_path = checkpoint.tokenizer or checkpoint.name
    return with_languages(tokenizer, name, checkpoint.source_language, checkpoint.target_language)


def _no_tokenizer(place: str, hub_revision: str | None) -> UserError:
    if Path(place).is_dir():
        return UserError(
            f"{place} holds no tokenizer; copy tokenizer.json and tokenizer_config.json of the checkpoint into it, or "
            "save its tokenizer there with save_pretrained"
        )
    revision = hub_revision or "main"
    if not use_cache_if_unreachable():
        return incomplete_copy(place, revision, missing_file(place, revision) or VOCABULARIES[0])
    return UserError(f"{place} has no tokenizer on the hub; use a checkpoint that has one")


def _damaged_tokenizer(place: str, hub_revision: str | None, error: Exception) -> UserError:
    reason = _wrong_file(place, _TOKENIZER_TEXT_FILES) or reason_of(error, 200)
    problem = f"the tokenizer of {place} cannot be loaded ({reason})"
    if Path(place).is_dir():
        return UserError(f"{problem}; save it again with the tokenizer's save_pretrained")
    revision = hub_revision or "main"
    if (missing := missing_file(place, revision)) and not use_cache_if_unreachable():
        return incomplete_copy(place, revision, missing)
    return UserError(f"{problem}; download it again with `hf download {place} --force-download`, or use another one")


def _wrong_file(place: str, names: Sequence[str]) -> str | None:
    """Return the problem of the first file that is not UTF-8, or whose name ends in .json without a JSON object in it.

    None: none of the files in `names` has such a problem. Missing files are skipped.
    """
    for path in (Path(place, name) for name in names):
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".json" and not isinstance(json.loads(text), dict):
                return f"{path.name} is not a JSON object"
        except UnicodeDecodeError:
            return f"{path.name} is not UTF-8"
        except ValueError as error:
            return f"{path.name} is not JSON ({reason_of(error, 80)})"
        except OSError:
            continue
    return None


def tokenizer_file(checkpoint: CheckpointSpec, name: str) -> Path | None:
    """Return the path of a file of a checkpoint's tokenizer. None if there is no such file."""
    place, hub_revision = _tokenizer_location(checkpoint)
    found = cached_file(
        place, name, revision=hub_revision, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return Path(found) if found else None


def _tokenizer_location(checkpoint: CheckpointSpec) -> tuple[str, str | None]:
    """Return the folder or hub id of a checkpoint's tokenizer, and its revision on the hub."""
    if checkpoint.tokenizer and not checkpoint.tokenizer_source:
        return _tokenizer_location(checkpoint_spec(checkpoint.tokenizer))
    embedded = is_embedded(checkpoint.name) and not checkpoint.tokenizer
    place = checkpoint.tokenizer_source or (str(NANO / "tokenizer") if embedded else location(checkpoint))
    return place, None if checkpoint.tokenizer_source else revision(checkpoint)


def generation_config(checkpoint: CheckpointSpec) -> Any:
    """Return the content of a checkpoint's generation_config.json. None: the checkpoint has no such file.

    Raises:
        UserError: transformers cannot load generation_config.json, because it has wrong values.
    """
    place = location(checkpoint)
    try:
        return GenerationConfig.from_pretrained(place, revision=revision(checkpoint))
    except OSError:  # the file is missing, or is not JSON: transformers ignores such a file
        return None
    except _WRONG_FILE_ERRORS as error:
        raise UserError(
            f"generation_config.json of {place} is wrong ({reason_of(error, 200)}); correct it, or get the checkpoint "
            "again"
        ) from error


def new_tokens(checkpoint: CheckpointSpec, vocabulary: int) -> tuple[int, ...]:
    """Return the ids of the tokens whose embeddings (`vocabulary` rows) were not trained in pretraining."""
    if checkpoint.reinit in {"embeddings", "all"}:
        return tuple(range(vocabulary))
    try:
        content = json.loads((Path(location(checkpoint)) / "pretraining.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ()
    # `petransfer pretrain` writes this list. Other programs can have a file of this name too.
    found = content.get("new_pieces") if isinstance(content, dict) else None
    is_ours = isinstance(found, list) and all(type(one) is int and 0 <= one < vocabulary for one in found)
    return tuple(found) if is_ours and found else ()


@contextlib.contextmanager
def one_line_errors(checkpoint: CheckpointSpec) -> Iterator[None]:
    """Inside the context, convert errors of transformers, safetensors and the file system into a one-line UserError."""
    name = checkpoint.source or checkpoint.name
    try:
        yield
    except (SafetensorError, OSError) as error:
        if getattr(error, "errno", 0) == errno.ENOSPC or "os error 28" in str(error):
            raise UserError(
                f"{tempfile.gettempdir()} is too full to load {name}: random weights take 4 bytes a parameter there; "
                "set TMPDIR to a folder with room"
            ) from error
        if isinstance(error, OSError):
            raise _not_found(checkpoint, error) from error
        raise UserError(f"the weights in {name} are damaged ({error}); get the checkpoint again") from error
    except ImportError as error:
        raise _missing_package(name, error) from error
    except _WRONG_FILE_ERRORS as error:
        raise _not_found(checkpoint, error) from error


def _not_found(checkpoint: CheckpointSpec, error: Exception) -> UserError:
    first = reason_of(error, 200)
    if is_embedded(checkpoint.name):
        return UserError(
            f"the checkpoint {checkpoint.name}, which ships with petransfer, is damaged ({first}); reinstall petransfer"
        )
    if checkpoint.source:
        if not Path(checkpoint.source).exists():
            return UserError(f"there is no folder {checkpoint.source}; put the checkpoint back, or correct its name")
        first = _wrong_file(checkpoint.source, ("adapter_config.json", "model.safetensors.index.json")) or first
        return UserError(f"{checkpoint.source} cannot be loaded ({first}); name a folder that save_pretrained wrote")
    hub_revision = revision(checkpoint) or "main"
    if (missing := missing_file(checkpoint.name, hub_revision, checkpoint)) and not use_cache_if_unreachable():
        return incomplete_copy(checkpoint.name, hub_revision, missing)
    hint = (
        "without a network, download it elsewhere and name its folder, or use nano/english, which ships with petransfer"
    )
    return UserError(f"{checkpoint.name} could not be loaded from the hub or its cache ({first}); {hint}")
