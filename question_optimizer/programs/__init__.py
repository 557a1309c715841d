"""The DSPy storey: programs beside the pipeline, and what the phase scripts do with all of them.

suggester                  questions to choose from, for annotators
annotation_desk, annotation_session, annotation_browser
                           an annotator's work: what it begins with, at the screen, in a browser
judge, pairwise            the judge behind every score; which of two questions is better
judge_check, trust, pair_scorer
                           the judge measured against people, and optimised
optimizers, search, trials the optimisers, a search by one of them, and how far it is
runs, verdict_run, evaluation
                           programs over gold items; the verdict's rows, and what they come to
adapter, estimates, differences
                           prompts: rendered, measured, and compared
generation_script, maintenance_script
                           the generator's script; what it does with questions that are there
generation_run, generation_report
                           one run over a collection, and what is told of it
production, question_worker
                           jobs through an engine into the ledger; one job
ray_engine, ray_cluster, ray_node, ray_budget
                           the same on a cluster
"""
