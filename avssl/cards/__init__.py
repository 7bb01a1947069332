"""Data set cards: known data sets, the layout of a copy on disk, and whether a copy is whole."""

from avssl.cards.card import Card, card_names, cards_folder, load_card
from avssl.cards.survey import Split, Survey, survey

__all__ = ["Card", "Split", "Survey", "card_names", "cards_folder", "load_card", "survey"]
