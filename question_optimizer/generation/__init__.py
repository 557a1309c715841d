"""A run of the generator over a corpus: everything of it that needs no DSPy.

ledger                     the state of every question of a configuration
ledger_configurations, ledger_journal
                           who else made questions for the collection; what was written into it
ledger_file, ledger_records, ledger_tables
                           what these stand on: one connection, values and their rows, SQL
backlog, preview           which questions are still to be made; what making them would take
quotas                     type, format and length by a plan over the corpus
checks, settling           what is checked of a question by itself, and against the corpus
repeats                    near-duplicates among a corpus of questions
corpus_index, corpus_build, vector_file, bm25
                           the corpus as two retrievers see it, on disk
round_trip, embedded_text  whether a question finds its own chunk
write_back, node_json, client_writer, folder_writer, point_rows
                           questions into the collection and out again, no other byte changed
maintenance                writing, showing and taking back without making any
forecast                   when the work ends, with limits per minute and per day
outcome, questions_file    what a run comes to, and its questions as JSONL
summary, census, yields, examples
                           what there is to say about all of it
"""
