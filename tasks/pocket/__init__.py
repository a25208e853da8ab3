"""The pocket tasks: four small tasks of this project's own making, one for each way lm-eval asks a model.

``arithmetic``, ``choice``, ``text`` and ``recall`` each generate the documents of one task, ``splits`` keeps
training, validation and test apart, ``lm`` hands them to lm-eval. ``train`` makes the model beside them.
"""
