"""Question Optimizer: measure and improve the prompts that write retrieval questions.

The phases stand flat beside this package; here is what supports them, one noun a module.
Importing the package does nothing: no folder, no network, no heavy library.
"""

__version__ = "0.1.0"
