from .configs import check_choices as check_choices  # the old home
