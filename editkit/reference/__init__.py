"""The published algorithms, plain and slow: what tests and benchmarks hold the package to.

They share tokens and padding (``language/keys``, ``language/forward/prefix``) and the one door to activations
(``models/hooks``) with what they judge, and nothing else. Each is itself held to something that we did not write:

- ``language.target``, ``language.key``, ``language.memit_updates``: ``compute_z``, ``compute_ks`` and
  ``execute_memit`` of kmeng01/memit, the first two copied by EMMET and AlphaEdit; what that code computed for eight
  records on SmolLM2 (tests/integration/test_parity.py).
- ``language.scores``: ``test_batch_prediction`` of kmeng01/rome and its descendants; the same losses.
- ``language.second_moment``: ``layer_stats`` of kmeng01/rome and kmeng01/memit; the definition E[k kᵀ].
- ``solvers.kkt_equality``: the constrained problem of arXiv 2202.05262 (one edit) and 2403.14236 (many); their
  printed solutions.
- ``solvers.weighted_normal_equations``: weighted least squares; LAPACK's solution of the stacked system.
- ``solvers.memit_printed``, ``solvers.alphaedit_printed``: arXiv 2210.07229 eq. 14, arXiv 2410.02355 eq. 14.
- ``solvers.alphaedit_public``: ``apply_AlphaEdit_to_model`` of jianghoucheng/AlphaEdit; the print.
- ``solvers.betaedit_public``: ``batch_edit`` of lbq8942/BetaEdit; AlphaEdit where its second moment is 0.
"""
