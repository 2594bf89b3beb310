"""Functions for several methods. They may import torch and peft, so the methods' files import them inside functions."""
