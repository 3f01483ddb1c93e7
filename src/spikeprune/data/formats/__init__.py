"""What datasets of one format share: idx files, CIFAR batches and sheets, folders of images, event recordings."""
