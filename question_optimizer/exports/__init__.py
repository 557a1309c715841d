"""Training and test sets out of the generator's ledger: split, written, checked, proved.

workspace   the questions and chunks of one export in a working file, so that memory stays bounded
dataset     which questions of the ledger go in, and why others do not
likeness    texts of a corpus that are the same or nearly so
splitting   train, dev and test by whole documents, kept from one export to the next
negatives   chunks that are close to a question and do not answer it
formats     pairs, triplets, BEIR, Parquet, Hugging Face
cards       the README, the dataset card and a training script of an export
reading     an export read back, for checks
leaks       what of one side is also on another
folders     a folder replaced as a whole
training, proof_inputs, proof_verdict, prove   does training on it help retrieval?
"""
