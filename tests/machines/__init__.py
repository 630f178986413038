"""Machines that do what servers, workers and clients may do, in any order, and compare the store with a model of it."""
