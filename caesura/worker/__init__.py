"""One attempt at a job, in a process of its own: claim, restore, train, save, publish, release."""
