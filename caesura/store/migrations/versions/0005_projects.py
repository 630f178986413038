"""Organizations, projects, keys and permissions"""

from alembic import op
import sqlalchemy as sa

revision = '0005'
down_revision = '0004'


def _seq() -> sa.Column:
    return sa.Column('seq', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False)


def upgrade() -> None:
    op.create_table('projects',
    _seq(),
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('organization', sa.String(length=32), nullable=False),
    sa.Column('name', sa.String(length=64), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('seq'),
    sa.UniqueConstraint('id'),
    sa.UniqueConstraint('organization', 'name'),
    sqlite_autoincrement=True
    )
    op.create_table('api_keys',
    _seq(),
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('name', sa.String(length=64), nullable=False),
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('hint', sa.String(length=32), nullable=False),
    sa.Column('project', sa.String(length=64), nullable=False),
    sa.Column('role', sa.String(length=16), nullable=False),
    sa.Column('expires_at', sa.BigInteger(), nullable=True),
    sa.Column('revoked_at', sa.BigInteger(), nullable=True),
    sa.Column('requests_per_minute', sa.Integer(), nullable=True),
    sa.Column('max_file_bytes', sa.BigInteger(), nullable=True),
    sa.ForeignKeyConstraint(['project'], ['projects.id'], ),
    sa.PrimaryKeyConstraint('seq'),
    sa.UniqueConstraint('id'),
    sa.UniqueConstraint('sha256'),
    sqlite_autoincrement=True
    )
    op.create_table('permissions',
    _seq(),
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('checkpoint', sa.Text(), nullable=False),
    sa.Column('project', sa.String(length=64), nullable=False),
    sa.Column('deleted_at', sa.BigInteger(), nullable=True),
    sa.PrimaryKeyConstraint('seq'),
    sa.UniqueConstraint('id'),
    sqlite_autoincrement=True
    )
    op.create_index('permissions_of_checkpoint', 'permissions', ['checkpoint', 'seq'], unique=False)
    # What was there before projects were belongs to the first one.
    for table in ('files', 'jobs', 'models', 'responses'):
        op.add_column(table, sa.Column('project', sa.String(length=64), server_default='proj_default', nullable=False))
        op.create_index(f'{table}_of_project', table, ['project', 'seq'], unique=False)
    op.add_column('jobs', sa.Column('extras', sa.JSON(), server_default='{}', nullable=False))
    op.add_column('jobs', sa.Column('deleted_at', sa.BigInteger(), nullable=True))
