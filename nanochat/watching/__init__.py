"""What `python -m nanochat.watch` shows: files of the state folders, the queue, and the words for them."""
