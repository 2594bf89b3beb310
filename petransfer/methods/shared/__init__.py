"""Functions that several methods use. These modules import torch and peft, so import them only inside functions."""
