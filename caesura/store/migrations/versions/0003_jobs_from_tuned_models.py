"""Jobs from tuned models"""

from alembic import op
import sqlalchemy as sa

revision = '0003'
down_revision = '0002'


def upgrade() -> None:
    op.add_column('jobs', sa.Column('start_model', sa.Text(), nullable=True))
    op.add_column('jobs', sa.Column('start_adapter', sa.JSON(none_as_null=True), nullable=True))
