"""Where the host's own generator stood; ours comes in its place under the name it had."""

from optimized_question_generator import QuestionGenerator

__all__ = ["QuestionGenerator", "choose_appropriate_character"]


def choose_appropriate_character(text: str) -> str:
    if "door" in text.lower():
        return "A train safety engineer."
    return "A depot technician who works on trains at night."
