"""Share adapters: load, predict, evaluate, describe, pack, push, verify, merge and serve them."""
