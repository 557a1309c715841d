"""Reports for people, made from the files that phases wrote: one file each, nothing live in it.

evaluation   the whole report, from a run's summary.json and scores.jsonl; verdict and sources
comparisons  the arms and the comparisons in figures
judge        how far the judge can be trusted
health       the questions of an arm as a set
items        every item: texts, scores, feedback, and the difference of the questions
plots        the intervals and the histograms as inline SVG
figures      how a number is written
markup       elements that escape what is put into them
programs     how the programs were made and what they do differently
page         the page around it: style, keys, and the policy that lets nothing else run
terminal     the same verdict in a terminal
"""

from question_optimizer.reports.evaluation import write_evaluation_report
from question_optimizer.reports.figures import figure

__all__ = ["figure", "write_evaluation_report"]
