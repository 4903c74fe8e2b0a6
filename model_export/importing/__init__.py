"""From another framework's files to starting weights of the keyboard family; nothing here imports TensorFlow when it
is imported."""
