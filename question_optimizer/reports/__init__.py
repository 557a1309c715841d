"""Reports for people, made from the files that phases wrote: one file each, nothing live in it.

evaluation   the whole report, from a run's summary.json and scores.jsonl; verdict and sources
generation   the whole report of a run of the generator, from its summary; how to go on or back
yields       what the gates refused, and the yields by kind
examples     refused and accepted questions to look at
generation_costs
             failures, models, accounts and cost; how to go on or back
generation_terminal
             the same summary in a terminal
proof        whether training on an export helps retrieval, from its proof.json
moves        how its questions moved from one ranking to the other
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
from question_optimizer.reports.generation import write_generation_report
from question_optimizer.reports.generation_terminal import told

__all__ = ["figure", "told", "write_evaluation_report", "write_generation_report"]
