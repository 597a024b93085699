"""Alignment: from a pretrained model to a chat model that people prefer (Llama 2, section 3).

masked.py       means over what is valid, shapes that must agree
ranking.py      reward models: the ranking loss with a margin by rating, the auxiliary safety loss
dpo.py          direct preference optimization, which needs no reward model
combine.py      two scores, safety and helpfulness, into one reward
advantages.py   rewards of tokens, KL estimators, generalized advantage estimation, whitening
policy.py       PPO's clipped losses of policy and value, and what is watched beside them

All of these are functions of arrays and know nothing of models. A loss returns (loss, saved), its backward pass takes
`saved` and returns the gradients of what the model has computed. Where a batch is taken in parts, `count` is what the
mean is over in the whole of it: losses and gradients of the parts then add up to those of the batch.
"""
