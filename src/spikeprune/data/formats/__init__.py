"""Readers of formats that several datasets share: idx files, CIFAR batches and sheets, images, event recordings."""
