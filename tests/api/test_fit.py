"""The function `petransfer.fit`, which predicts the memory of a training like the verb `fit`."""

from __future__ import annotations

import doctest

import pytest

import petransfer
from petransfer.memory import fit as module
from petransfer.memory import study_memory


def test_the_example_in_the_docstring_runs() -> None:
    (found,) = doctest.DocTestFinder(recurse=False).find(module.fit, "fit", globs={})
    assert doctest.DocTestRunner().run(found).failed == 0


@pytest.mark.usefixtures("two_layers")
def test_a_training_that_does_not_fit_gets_suggestions() -> None:
    found = petransfer.fit("google-t5/t5-small", method="full", bits=32, batch_size=1, lengths=(4, 4), card="1.1GB")
    assert not found.fits
    assert "--method lora" in found.suggestions
    assert "does not fit" in str(found)
    assert found.as_dict()["fits"] is False


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"bits": 5}, ("5", "4, 8, 16 or 32")),
        ({"method": "lorra"}, ("lorra", "lora")),
        ({"card": "RTX 9999"}, ("RTX 9999", "12GB")),
        ({"optimizer": "sgd"}, ("optimizer", "adamw")),
        ({"method": "full", "bits": 4}, ("4-bit", "lora")),
        ({"lengths": (0, 5)}, ("at least 1",)),
        ({"batch_size": 10**12}, ("1,000,000,000,000 examples", "65,536")),
        ({"lengths": (1, 10**12)}, ("too large", "1,048,576 tokens")),
        ({"method": "bias", "match_parameters": 50}, ("bias", "neither a rank nor virtual tokens")),
    ],
)
def test_a_wrong_argument_is_named_in_the_error(changes: dict[str, object], parts: tuple[str, ...]) -> None:
    with pytest.raises(petransfer.UserError) as error:
        petransfer.fit("nano/english", **changes)  # type: ignore[arg-type]
    assert all(part in str(error.value) for part in parts)


@pytest.mark.slow
def test_a_very_long_row_of_an_embedded_checkpoint_is_predicted_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Usual rows surely fit and need no prediction. A target of 400,000 characters does not fit 16 GB."""
    from petransfer.recipe.loading import load_recipe
    from petransfer.study.grid import expand

    spec = expand(load_recipe("lora-scan"))[0].spec
    study_memory.refuse_too_large_for_cpu([spec], lambda spec: {})
    monkeypatch.setattr(study_memory, "_longest", lambda spec: (20, 400_000))
    monkeypatch.setattr(study_memory, "host_bytes", lambda: 16 * 10**9)
    with pytest.raises(petransfer.UserError) as error:
        study_memory.refuse_too_large_for_cpu([spec], lambda spec: {})
    assert all(part in str(error.value) for part in ("nano/", "does not fit", "16 GB", "--force"))


def test_the_micro_batch_of_the_largest_step_is_reduced() -> None:
    """A step with more tokens takes longer to simulate, so a simulated micro-batch has at most 2**22 tokens."""
    found = petransfer.fit("nano/english", bits=32, batch_size=2**16, lengths=(2**20, 2**20))
    assert found.batch == 2**16
    assert found.micro_batch == 2
    assert found.step_spec.accumulates


def test_the_repr_is_one_readable_line() -> None:
    found = petransfer.fit("nano/english", bits=32, batch_size=8, card="12GB")
    shown = repr(found)
    assert "8 of 8 examples at once" in shown
    assert "of 12 GB" in shown
    assert f"{found.memory.trained_parameters:,} trained parameters" in shown
    assert len(shown) < 100
