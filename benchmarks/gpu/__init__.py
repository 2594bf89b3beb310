"""First measurements on a GPU: five stages that one command runs on a machine without a network."""
